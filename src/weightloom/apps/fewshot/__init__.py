"""Few-shot meta-learning: from a support set to a working network in one forward pass.

Start at `weightloom.apps.fewshot.run.run_fewshot`, or write a method of your own from
`weightloom.learners.learner.Learner`.
"""

"""Few-shot learning on digits: train, adapt to digits never seen in training, save the network.

Open it by `marimo edit notebooks/few_shot_digits.py`, or run it by `python` like any script; it
needs the extra `digits`.
"""

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import marimo as mo
    import plotly.express as px
    from sklearn.datasets import load_digits

    from weightloom.apps import fewshot

    return fewshot, load_digits, mo, px


@app.cell
def _(mo):
    mo.md("""
    # Few-shot learning on digits

    Training sees the digits 3 to 9. The digits 0, 1 and 2 are then told apart after five examples of each, by a network that
    is written in one forward pass.
    """)
    return


@app.cell
def _(fewshot):
    learner = fewshot.train("digits", steps=120)
    return (learner,)


@app.cell
def _(load_digits):
    digits = load_digits()
    images = {kind: digits.images[digits.target == kind] / 16 for kind in (0, 1, 2)}
    support = {f"a {kind}": list(images[kind][:5]) for kind in images}
    queries = [image for kind in images for image in images[kind][5:105]]
    truth = [f"a {kind}" for kind in images for _ in range(100)]
    return images, queries, support, truth


@app.cell
def _(images, px):
    px.imshow(images[2][:5], facet_col=0, binary_string=True)
    return


@app.cell
def _(learner, queries, support, truth):
    adapted = learner.adapt(support)
    answers = adapted.predict(queries)
    accuracy = sum(a == t for a, t in zip(answers, truth, strict=True)) / len(truth)
    f"accuracy on {len(truth)} new pictures: {accuracy:.3f}; of guessing: 0.333"
    return accuracy, adapted


@app.cell
def _(adapted):
    import tempfile

    folder = tempfile.mkdtemp() + "/network"
    adapted.save(folder)[
        "files"
    ]  # a plain network and its preprocessing, usable without this library
    return


if __name__ == "__main__":
    app.run()

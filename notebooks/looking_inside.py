"""Looking inside a hypernetwork: use of the condition, scale, response, rank.

Open it by `marimo edit notebooks/looking_inside.py`, or run it by `python` like any script.
"""

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import marimo as mo
    import torch
    from torch import nn

    from weightloom import (
        MLPHyperNetwork,
        TrainOptions,
        check_scale,
        condition_use,
        effective_rank,
        layer_response,
        mse_per_task,
        per_task,
        train,
    )
    from weightloom.diagnostics import draw, plot_condition_use, plot_rank

    return (
        MLPHyperNetwork,
        TrainOptions,
        check_scale,
        condition_use,
        draw,
        effective_rank,
        layer_response,
        mo,
        mse_per_task,
        nn,
        per_task,
        plot_condition_use,
        plot_rank,
        torch,
        train,
    )


@app.cell
def _(mo):
    mo.md("""
    # Looking inside a hypernetwork

    Every task is a rotation of the plane by an angle of its own. The condition is the angle's cosine and sine, so the true
    map from condition to weights is known: two numbers that enter linearly.
    """)
    return


@app.cell
def _(torch):
    def rotations(tasks, generator):
        angle = 6.2832 * torch.rand(tasks, generator=generator)
        x = torch.randn(tasks, 20, 2, generator=generator)
        cosine, sine = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
        return torch.stack([cosine, sine], -1), x, x @ turn.mT

    return (rotations,)


@app.cell
def _(MLPHyperNetwork, mse_per_task, nn, per_task, torch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(2, 2)
            self.hyper = MLPHyperNetwork(self.base, condition_dim=2, generate="weight")

        def forward(self, batch):
            condition, x, y = batch
            return mse_per_task(per_task(self.base)(self.hyper(condition), x), y)

    torch.manual_seed(0)
    model = Model()
    return (model,)


@app.cell
def _(draw, model):
    draw(model.hyper)
    return


@app.cell
def _(check_scale, model, rotations, torch):
    condition, x, y = rotations(64, torch.Generator().manual_seed(1))
    check_scale(model.hyper, condition, x)
    return condition, x, y


@app.cell
def _(TrainOptions, model, rotations, train):
    history = train(
        model,
        lambda step, chance: rotations(32, chance),
        None,
        TrainOptions(steps=400, outer_lr=1e-2),
    )
    history.plot()
    return (history,)


@app.cell
def _(condition, condition_use, model, mse_per_task, x, y):
    use = condition_use(
        model.hyper.eval(), model.base, condition, x, lambda answers: mse_per_task(answers, y)
    )
    use
    return (use,)


@app.cell
def _(plot_condition_use, use):
    plot_condition_use(use)
    return


@app.cell
def _(condition, layer_response, model):
    layer_response(model.hyper, condition)
    return


@app.cell
def _(condition, effective_rank, model, torch):
    with torch.no_grad():
        rank = effective_rank(model.hyper(condition))
    rank  # rotations fill a plane: two directions
    return (rank,)


@app.cell
def _(plot_rank, rank):
    plot_rank(rank)
    return


if __name__ == "__main__":
    app.run()

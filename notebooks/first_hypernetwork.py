"""A first hypernetwork: sinusoids from a few points.

Open it by `marimo edit notebooks/first_hypernetwork.py`, or run it by `python` like any script.
"""

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import marimo as mo
    import plotly.graph_objects as go
    import torch
    from torch import nn

    from weightloom import (
        DeepSets,
        MLPHyperNetwork,
        SinusoidTasks,
        TrainOptions,
        apply_per_task,
        mse_per_task,
        train,
    )
    from weightloom.diagnostics import draw

    return (
        DeepSets,
        MLPHyperNetwork,
        SinusoidTasks,
        TrainOptions,
        apply_per_task,
        draw,
        go,
        mo,
        mse_per_task,
        nn,
        torch,
        train,
    )


@app.cell
def _(mo):
    mo.md("""
    # A first hypernetwork

    A task is a sinusoid with an amplitude and a phase of its own, known by ten points. The hypernetwork reads the points
    and writes the weights of a small network for this sinusoid, in one pass.
    """)
    return


@app.cell
def _(SinusoidTasks, torch):
    source = SinusoidTasks(shots=10)
    tasks = source.sample(4, torch.Generator().manual_seed(0))
    tasks
    return source, tasks


@app.cell
def _(DeepSets, MLPHyperNetwork, apply_per_task, nn, torch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Sequential(
                nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
            )
            self.encoder = DeepSets(x_dim=1, y_dim=1, condition_dim=32)
            self.hyper = MLPHyperNetwork(self.base, condition_dim=32)

        def forward(self, tasks):
            condition = self.encoder(tasks.support_x, tasks.support_y)  # (tasks, condition_dim)
            return apply_per_task(self.base, self.hyper(condition), tasks.query_x)

    torch.manual_seed(0)
    model = Model()
    return (model,)


@app.cell
def _(draw, model):
    draw(model.hyper)
    return


@app.cell
def _(draw, model):
    draw(model.hyper, step=True)
    return


@app.cell
def _(TrainOptions, model, mse_per_task, source, train):
    history = train(
        model, source, mse_per_task, TrainOptions(steps=250, outer_lr=5e-3), quiet=False
    )
    history
    return (history,)


@app.cell
def _(history):
    history.plot()
    return


@app.cell
def _(go, model, tasks, torch):
    model.eval()
    with torch.no_grad():
        answers = model(tasks)
    figure = go.Figure()
    for number in range(2):
        order = tasks.query_x[number, :, 0].argsort()
        x = tasks.query_x[number, order, 0].tolist()
        figure.add_scatter(
            x=x,
            y=tasks.query_y[number, order, 0].tolist(),
            name=f"sinusoid {number}",
            line_dash="dot",
        )
        figure.add_scatter(
            x=x, y=answers[number, order, 0].tolist(), name=f"written network {number}"
        )
        points = tasks.support_x[number, :, 0].tolist(), tasks.support_y[number, :, 0].tolist()
        figure.add_scatter(x=points[0], y=points[1], mode="markers", name=f"ten points {number}")
    figure
    return answers, figure


@app.cell
def _(answers, mse_per_task, tasks):
    error = mse_per_task(answers, tasks.query_y).mean().item()
    f"mean squared error on four new sinusoids: {error:.3f}; of answering zero: {tasks.query_y.square().mean():.2f}"
    return (error,)


if __name__ == "__main__":
    app.run()

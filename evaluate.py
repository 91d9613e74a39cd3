"""Measure a checkpoint: python evaluate.py checkpoint=outputs/..."""

from latentdiff.app.launch import launch


def job(cfg):
    from latentdiff.app.evaluation.evaluate import run

    run(cfg)


if __name__ == "__main__":
    launch(job, "evaluate")

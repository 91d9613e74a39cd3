"""Draw prompts: python sample.py checkpoint=outputs/... prompt="a red circle, left of a box" """

from latentdiff.app.launch import launch


def job(cfg):
    from latentdiff.app.sampling.sample import run

    run(cfg)


if __name__ == "__main__":
    launch(job, "sample")

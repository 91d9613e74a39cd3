"""Train one stage: python train.py experiment=ldm_txt2img"""

from latentdiff.app.launch import launch


def job(cfg):
    from latentdiff.app.train import run

    run(cfg)


if __name__ == "__main__":
    launch(job, "train")

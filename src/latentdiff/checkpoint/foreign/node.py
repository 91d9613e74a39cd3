"""An autoencoder of another program as a node of our configuration."""

from __future__ import annotations

from latentdiff.checkpoint.foreign.architecture import Architecture


def node(architecture: Architecture) -> dict[str, object]:
    """What ``build`` makes the autoencoder of."""
    a, home = architecture, "latentdiff.models.autoencoder"
    quantised = {"_target_": f"{home}.bottlenecks.vq.VQ", "entries": a.codebook, "channels": a.embed_dim}
    return {
        "_target_": f"{home}.autoencoder.Autoencoder",
        "bottleneck": {"_target_": f"{home}.bottlenecks.kl.KL"} if a.codebook is None else quantised,
        "channels": a.channels,
        "channel_multipliers": list(a.channel_multipliers),
        "num_res_blocks": a.num_res_blocks,
        "latent_channels": a.z_channels,
        "embed_dim": a.embed_dim,
        "attention_factors": list(a.attention_factors),
        "in_channels": a.image_channels,
        "mid_attention": a.mid_attention,
        "norm_groups": a.norm_groups,
        "quant_conv": a.quant_conv,
        "post_quant_conv": a.post_quant_conv,
    }

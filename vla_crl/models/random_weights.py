"""A policy as another one is, with random weights."""

from pathlib import Path
from tempfile import TemporaryDirectory

from vla_crl.compute import Dtype
from vla_crl.models.policy import VLAPolicy


def with_random_weights(policy: VLAPolicy, dtype: Dtype = "float32") -> VLAPolicy:
    """Return a policy of the same architecture with random weights of torch's global generator.

    Vocabulary and normalisation are those of `policy`, a pretrained backbone's weights are not.

    Args:
        policy: Without adapters.
        dtype: In which the backbone computes; all weights are float32, to be trained.
    """
    vlm = policy.backbone.vlm
    with TemporaryDirectory() as folder:
        files = Path(folder) if vlm.is_pretrained else None
        if files is not None:
            vlm.save_files(files)
        fresh = VLAPolicy(policy.config, vlm_files=files, dtype=dtype)
    fresh.norm_stats.load_state_dict(policy.norm_stats.state_dict())
    return fresh.to(policy.device).eval()

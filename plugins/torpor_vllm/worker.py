"""`Renewal`: what vLLM's workers renew after a restore.

vLLM mixes it into its worker class (`--worker-extension-cls`; v1/worker/worker_base.py of 0.32.0 and 0.33.0) and calls it
through POST /collective_rpc. Its names must not be the worker's own, hence the prefix.
"""

from __future__ import annotations

from torpor.launcher import ensure_tile_permission, renew_random_state

__all__ = ["Renewal"]


class Renewal:
    """A worker's second base class."""

    def torpor_renew(self, seed: str) -> str:
        """Renew what replicas of one snapshot must not share.

        The random state: a request without a seed is sampled from the worker's generators, which are the same in every
        replica. All tensor-parallel ranks get the same seed, because each samples for itself. And the permission to use AMX,
        which a restored process has lost.

        Args:
            seed: a number below 2**32, as text: the route hands over nothing but text.

        Returns:
            The seed.
        """
        from vllm.utils.torch_utils import set_random_seed  # noqa: PLC0415 - the engine's

        ensure_tile_permission()
        set_random_seed(int(seed))  # what else vLLM seeds on its platform
        renew_random_state(seed=int(seed))
        return seed

"""`Renewal`: what vLLM's workers can be asked to make new after a restore.

vLLM mixes it into its worker class (`--worker-extension-cls`; v1/worker/worker_base.py of 0.32.0 and 0.33.0) and calls it
through POST /collective_rpc. Its names must not be the worker's own, hence the prefix.
"""

from __future__ import annotations

from torpor.engine_patches.renewal import renew_random_state
from torpor.engine_patches.tile_permission import has_permission, has_tiles, request_permission

__all__ = ["Renewal"]


class Renewal:
    """A worker's second base class."""

    def torpor_renew(self, seed: str) -> str:
        """Make new what every copy of a snapshot shares and must not.

        The random state: without a seed of its own a request is sampled from the worker's generators, which are the same
        in every copy; all tensor-parallel ranks get the same seed, because each samples for itself. And the permission to
        use AMX, which a process that CRIU restored has lost.

        Args:
            seed: a number below 2**32, as text: the route hands over nothing but text.

        Returns:
            The seed.
        """
        from vllm.utils.torch_utils import set_random_seed  # noqa: PLC0415 - the engine's

        if has_tiles() and not has_permission():
            request_permission()
        set_random_seed(int(seed))  # what else vLLM seeds on its platform
        renew_random_state(seed=int(seed))
        return seed

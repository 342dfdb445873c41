"""Where a deployment runs: `torpor.platforms.modal.server` and `torpor.platforms.local.server`."""

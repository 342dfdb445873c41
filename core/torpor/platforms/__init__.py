"""Where a deployment runs: `torpor.platforms.modal` and `torpor.platforms.local`."""

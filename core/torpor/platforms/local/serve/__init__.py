"""Several deployments at one address of this machine, to zero and back: `torpor serve`.

configuration   serve.toml, checked
app_files       which app files have changed
planned         app files and configuration put together, checked as a whole
budget          the memory for all, and whether everything fits
kept_sizes      measured sizes, over a restart of the server
engine_here     one replica: starts, sleeps, wakes, is captured, ends; each call blocks
conductor       does what `torpor.serving.fleet` decides, in threads, and hands requests to replicas
control         the control paths and the page at `/torpor/`
server          all of it, from the start to the end
"""

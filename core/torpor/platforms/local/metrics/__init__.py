"""The metrics of a command that serves, over HTTP, in Prometheus' format.

names      every metric: its kind, its labels, its meaning
counted    counts starts, stages and failures as they end
figures    what is read at each scrape: states, queues, memory, snapshots
collector  both as one `prometheus_client` collector
engines    the engines' own metrics, passed on
server     the address of its own on which they can be read
"""

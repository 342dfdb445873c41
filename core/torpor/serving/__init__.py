"""Several models at one address: requests find their model, wait for it in order, and reach one of its replicas.

    values      what the data path and the control side know of each other

No cluster and no local platform is in this package, so every platform can use it.
"""

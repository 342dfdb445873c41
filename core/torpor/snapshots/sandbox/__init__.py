"""One sandbox per replica: namespaces, the first process, and the engine inside."""

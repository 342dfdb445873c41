"""One sandbox per replica: its namespaces, its first process, and the engine inside."""

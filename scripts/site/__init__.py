"""The documentation site's tooling: what of it is made from the code, and how.

    hooks           what mkdocs calls: fills generated parts in, adds the pages of files outside of docs/, mends links
    hook_reference  the six hooks, and the check before them, from their docstrings
    engines         engine plugins: capabilities and flags; every plugin's options
    commands        the command line, from its own help
    modules         the map of modules, from their docstrings
    docstrings      docstrings taken apart
    guard_states    the guard's state machine, walked, and drawn as docs/guard-states.svg
    llms            llms.txt, and each page as Markdown beside its HTML

`make docs` builds the site into site/; nothing is fetched for it. A page says `<!-- generated: NAME -->` where something
is put in; the names are in `hooks.PARTS`.
"""

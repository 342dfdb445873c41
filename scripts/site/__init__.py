"""The tools that build the documentation site, and the parts of it that come from the code.

    build           builds the site, and serves it
    pages           every page as Markdown: fills in generated parts, adds pages for files outside of docs/, corrects links
    hook_reference  the six hooks, and the check before them, from their docstrings
    engines         engine plugins: capabilities and flags; every plugin's options
    commands        the command line, from its own help
    api             the public names, their pages, and their docstrings as Markdown
    environment     environment variables, from the code
    records         metrics, fields of records, and stages
    moved           sections that moved to another page, and the script that follows them
    modules         the map of modules, from their docstrings
    parts           the table of parts of the code, and their drawing, docs/parts.svg
    docstrings      parses docstrings
    guard_states    walks the guard's state machine, and draws docs/guard-states.svg
    pictures        the timeline of a restore and a restored fleet, from the JSON of benchmarks
    llms            llms.txt, and each page as Markdown next to its HTML

`make docs` builds the site into site/ without the network. `<!-- generated: NAME -->` on a page marks the place of a generated
part; the names are in `pages.PARTS`.
"""

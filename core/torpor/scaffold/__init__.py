"""Writes the plugin project of `torpor new` from the templates in this folder.

    names        derives the names of project, module, entry point and class from the plugin's name
    project      fills in the files of `templates/shared` and `templates/plugin` or `templates/engine`
    tasks        what the files say for each task
    writing      writes a folder completely or not at all

For the laptop only: a container gets the modules of this package but not the templates, and does not use them.
"""

from __future__ import annotations

from torpor.scaffold.names import Names, names_of
from torpor.scaffold.project import project_files
from torpor.scaffold.tasks import known_task
from torpor.scaffold.writing import write_project

__all__ = ["Names", "known_task", "names_of", "project_files", "write_project"]

"""What `torpor new` writes: a complete plugin project, from the templates beside this file.

    names        how a plugin's name becomes the project's, the module's, the entry point's and the class's
    project      its files, from `templates/shared` and `templates/plugin` or `templates/engine`
    writing      a folder that is written whole or not at all

For the laptop only: a container gets the modules of this package and not the templates, and nothing there asks for them.
"""

from __future__ import annotations

from torpor.scaffold.names import Names, names_of
from torpor.scaffold.project import project_files
from torpor.scaffold.writing import write_project

__all__ = ["Names", "names_of", "project_files", "write_project"]

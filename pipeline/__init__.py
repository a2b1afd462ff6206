"""tspace's library: how diffusion experts are trained, combined and measured.

No command line, no YAML and no file layout here: those are `stages/`.
"""

__version__ = "0.1.0"

"""Bundles: one folder or file with a model and all a device, a reader and a lawyer need of it.

`pack` makes one of a finished run, `signing` signs it, `reproduce` runs its recipe again, `diff` compares two,
`layouts` writes what other programs load. What opens and checks a bundle on a device is `edgeft.runtime.bundle`.
The format: docs/bundle.md.
"""

"""The AnnData boundary: libraries, coordinates, counts, panel, measured expression, gene names, grid, provenance.

An AnnData is resolved here once, into one object; what stands behind asks that object, never the AnnData again.
"""

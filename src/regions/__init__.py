"""From images and bottom-up-attention TSV files to arrays of regions.

`tsv` reads and writes the files, checking every line; `store` turns them once into memory-mapped arrays, which is
what training reads. Both speak numpy only: whoever wants tensors makes them.
"""

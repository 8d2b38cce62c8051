"""From bottom-up-attention TSV files to arrays of regions.

`tsv` reads, checks and writes the files; `store` turns them once into memory-mapped arrays, which is what training reads;
`placement` makes batches of them. All but `placement` use numpy only.
"""

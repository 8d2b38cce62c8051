"""Region features: TSV files of bottom-up attention, memory-mapped region stores, and batches.

`tsv` reads, checks and writes TSV files. `store` converts them once to memory-mapped arrays, which training reads. `placement`
gathers batches. All but `placement` use numpy only.
"""

"""ALBEF (Li et al., NeurIPS 2021): a ViT over pixels and BERT over words, aligned by contrast, then fused by cross attention."""

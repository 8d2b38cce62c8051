"""VisualBERT (Li et al., 2019): words and regions in one stream of BERT's layers."""

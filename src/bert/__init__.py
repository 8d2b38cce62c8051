"""What BERT-like models share: layers, tokenizer, weights, optimizer."""

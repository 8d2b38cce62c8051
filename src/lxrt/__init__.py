"""The LXMERT model: tokenizer, encoders, heads, optimizer and weights. It knows no dataset and no task."""

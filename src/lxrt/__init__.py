"""The LXMERT model: config, encoders, heads, pre-training objectives and weights."""

from lxrt.losses import label_counts  # noqa

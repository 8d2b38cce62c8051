"""Published files, fetched by run/download.bash: what there is, what came, what is unpacked of it."""

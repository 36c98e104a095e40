"""Store results as files that are whole or absent, and fetch verified files from hubs and other servers."""

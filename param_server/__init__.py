"""The parameter server: one version at a time, fetched only when newer."""

"""What may talk to what: manifests in, decision tables out. Pure: nothing here does I/O."""

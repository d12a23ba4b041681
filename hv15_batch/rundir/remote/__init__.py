"""Run directories on object storage: private parts of `rundir/store.py`."""

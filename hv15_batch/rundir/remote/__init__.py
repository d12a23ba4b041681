"""Run directories on object storage, behind `rundir/store.py`; `shared.py`: several machines."""

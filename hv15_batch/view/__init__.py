"""`hv15-batch view`: the page of runs, live, for one person at this machine.

`_access` decides who gets in, `_media` hands out clips, `_watch` looks for what is new, `_server`
joins them. What is shown comes from `report/`, which writes the same page to the disk.
"""

"""The study: every training that a claim of the book rests on, over seeds, tie orders and folds.

`make study` runs what is missing, can be stopped and gone on with, and stores one file a job in
`results/study/`. `study.summary` turns those files into `rectutor/included/study.json`, which pages
and chapters read through `rectutor.study`.

A job lives in the module of its chapter, `study/NAME.py`, which has two lists: `JOBS`, what is
trained, and `COMPARISONS`, what is claimed of it.
"""

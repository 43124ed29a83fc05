"""Reports: a run folder in, one page that a person can read out.

In:   a run folder: ``config.json``, and of the others whatever is there yet.
Out:  ``report.html`` in the same folder, complete in itself: nothing is fetched when it is opened.
Knows nothing of how the run was trained, or by which application, which gives what it draws as
sections; what a folder does not hold yet is left out of the page.
"""

from weightloom.report.page import build_report as build_report

"""Reports: a run folder in, one HTML page for a person out.

In:   a run folder; ``config.json`` is required, all other files are optional.
Out:  ``report.html`` in the same folder: one file without a script, which fetches no other.
Knows nothing of training, or of the application, which supplies its drawings as sections. The page
leaves out sections whose data the folder does not hold yet.
"""

from weightloom.report.page import build_report as build_report

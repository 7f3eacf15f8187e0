"""Look through annotation files before training: what the stock data sets stop at, or leave out.

One module per format reads the files without the data sets and says what is wrong in which file and
line; `sources` finds what there is to check, from a config or in a folder.
"""

from .report import Problem, Report
from .sources import Source, config_sources, folder_sources

__all__ = ['Problem', 'Report', 'Source', 'config_sources', 'folder_sources']

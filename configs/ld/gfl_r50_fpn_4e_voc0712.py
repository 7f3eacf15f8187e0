# The student R-50 alone.
_base_ = '../_base_/gfl_4e_voc0712.py'

# The student R-50 alone, and the teacher of R-18.
_base_ = '../_base_/oriented-rcnn_dotav15.py'

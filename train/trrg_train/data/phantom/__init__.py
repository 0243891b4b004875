"""The phantom: chest radiographs rendered from a seed, with every finding's place, report and labels known."""

from trrg_train.data.phantom.dataset import write_dataset
from trrg_train.data.phantom.sheet import contact_sheet
from trrg_train.data.phantom.study import PhantomStudy, draw_study, make_study

__all__ = ["PhantomStudy", "contact_sheet", "draw_study", "make_study", "write_dataset"]

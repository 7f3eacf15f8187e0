"""mmengine's runner, with what it cannot know of distillation."""

from pathlib import Path
from typing import Any, ClassVar

from mmengine.dist import master_only
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from .data_check import training_classes
from .detectors.checkpoint import drop_distillers
from .detectors.distilled import DistilledDetector

_FIRST_LINE = '# The whole config of a run, written when it began.\n'


@RUNNERS.register_module()
class DistillationRunner(Runner):
    """mmengine's, which compares class names when it builds the model.

    MMDetection's and MMRotate's own programs run it for configs with
    ``runner_type = 'DistillationRunner'``. Under another runner the first training step compares
    the names.
    """

    #: what the config that it ran is written as, in its work folder
    config_file: ClassVar[str] = 'config.py'

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """As mmengine's; then pair the classes of a distilled detector with its teacher's.

        Raises:
            ConfigError: The teacher does not know the classes that the config tells.
        """
        built = super().build_model(model)
        if isinstance(built, DistilledDetector) and (names := training_classes(self.cfg)):
            built.match_classes(names)
        return built

    @master_only
    def dump_config(self) -> None:
        """Write the config that it ran, not under the name of the config file.

        In an editable install MIM looks for a config's name in the whole source tree, work folders
        included, and refuses a name found twice: a copy of that name would make every second
        ``mim train mmdet-ld-plugin NAME`` fail. A file of the name that
        somebody else wrote, such as the config's base, is left alone: there its own name comes
        before.
        """
        target = Path(self.work_dir, self.config_file)
        if target.exists() and not target.read_text(encoding='utf-8').startswith(_FIRST_LINE):
            target = target.with_name(f'{Path(self.cfg.filename or "run").stem}_{target.name}')
        self.cfg.dump(target)
        target.write_text(_FIRST_LINE + target.read_text(encoding='utf-8'), encoding='utf-8')


class EvaluationRunner(DistillationRunner):
    """Of a student alone, in the work folder of its training, whose config stays as it was."""

    config_file = 'test_config.py'

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """As mmengine's; of a checkpoint hooks see what the student has."""
        if fn_name == 'after_load_checkpoint':
            drop_distillers(kwargs['checkpoint'])
        super().call_hook(fn_name, **kwargs)

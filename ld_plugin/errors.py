"""The exceptions that the plugin raises on purpose."""


class ConfigError(ValueError):
    """A value in the config cannot work.

    The message starts with the config key, then says what was found, what was expected and what to
    do about it. It is raised while the model is built, or, where only data show it (sizes of
    levels; class names, in a program that does not tell them before), in the step that meets them.
    """


class NonFiniteTeacherError(RuntimeError):
    """The teacher produced NaN or infinity, so that nothing could be learned from it."""

"""The doorbell: tells the WebUI where the tab, the routes and the settings of this extension are made.

A WebUI runs this file at each start and at each "Reload UI". What it imports is light, and stays loaded meanwhile, as
the trainings under way do.
"""

from modules import script_callbacks

from lora_trainer.hosts import settings
from lora_trainer.interfaces import webui

script_callbacks.on_ui_settings(settings.add)
script_callbacks.on_ui_tabs(webui.tabs)
script_callbacks.on_app_started(webui.started)

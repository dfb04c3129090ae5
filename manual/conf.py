'''How Sphinx builds the manual: tox -e docs.'''

from importlib.metadata import version as installed_version

project = 'looppool'
copyright = 'the looppool authors'  # the name is Sphinx's
release = version = installed_version('looppool')

extensions = ['sphinx.ext.autodoc', 'sphinx.ext.viewcode']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'looppool {release}'
html_show_sphinx = False

nitpicky = True
nitpick_ignore_regex = [
    ('py:.*', r'(?!looppool\.).*'),  # other projects' names are not looked up
    ('py:class', r'looppool\.(worker|packing|shared)\.(TaskT|ResultT|T|P|R)'),  # type variables
]
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'

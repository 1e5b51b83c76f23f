"""Bad input to every tool: one ``error:`` line that names the value, exit status 2, no traceback.

To add a case, add a line to CASES of one of the files imported here.
"""

import test_bad_input_costs
import test_bad_input_files
import test_bad_input_train
from tiny_runs import ROOT

#: tools that read nothing a user writes: doctor.py says what is wrong in its own table, make_metafiles.py takes no input
WITHOUT_INPUT = {'make_metafiles.py'}


def test_every_tool_has_a_case():
    tools = {path.name for path in (ROOT / 'tools').glob('*.py') if 'argparse' in path.read_text()}
    files = test_bad_input_train, test_bad_input_costs, test_bad_input_files
    missing = tools - {command[0] for file in files for command, _ in file.CASES} - WITHOUT_INPUT
    assert not missing, f'add a case for {missing}'

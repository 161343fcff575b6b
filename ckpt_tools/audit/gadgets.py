"""What is known of the names that a pickle may refer to: which do harm, and which cannot.

Two kinds of table. `KNOWN_DANGERS` names what runs code, opens files or connections, hands out arbitrary
attributes, or reads further pickles. Everything else of Python's standard library, of torch and of numpy is
presumed able to do so too, unless it is listed as inert below: a list of what is dangerous is never complete, and
whoever looks for a way past it needs one omission. Names of other packages are unknown, not inert.

A name matches an entry if it is the entry or lies under it: ``os`` covers ``os.path.join``.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Literal

from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.pickles.weights_only import ALLOWED_GLOBALS

Category = Literal[
    "code", "reflection", "loader", "files", "network", "process", "library", "extension", "computed", "injection"
]
"""What a danger does: runs code or programs; hands out names; reads further pickles or code; opens files; opens
connections; changes the running process; is a function of a library that is not known to be inert; comes from
copyreg's registry; calls what was itself computed; changes what a name refers to."""

SAYS: dict[Category, str] = {
    "code": "runs code or programs",
    "reflection": "reaches any attribute or module by name",
    "loader": "loads a further pickle or program",
    "files": "opens, writes or removes files",
    "network": "opens network connections",
    "process": "changes the running process",
    "library": "is not among the functions known to do nothing but make a value",
    "extension": "stands for whatever the loading process has registered",
    "computed": "calls what the stream itself has computed",
    "injection": "changes what a name refers to, for the whole process",
}


def _names(text: str, prefix: str = "") -> frozenset[str]:
    return frozenset(prefix + name for name in text.split())


def _table(**entries: str) -> dict[str, Category]:
    return {name: category for category, names in entries.items() for name in names.split()}  # type: ignore[misc]


KNOWN_DANGERS: dict[str, Category] = _table(
    code="""
    os posix nt subprocess popen2 commands pty _posixsubprocess _winapi multiprocessing _multiprocessing concurrent
    asyncio _asyncio code codeop bdb pdb cProfile profile _lsprof trace timeit doctest runpy pip ensurepip venv
    distutils setuptools _distutils_hack pkg_resources wheel idlelib lib2to3 pydoc _pyrepl _osx_support _aix_support
    _bootsubprocess uuid._get_command_stdout imaplib.IMAP4_stream webbrowser antigravity mailcap pipes test unittest
    ctypes _ctypes cffi _cffi_backend turtle turtledemo tkinter _tkinter cgitb cgi sched _interpreters
    _xxsubinterpreters _interpchannels _interpqueues compileall py_compile zipapp cmd crypt msilib platform sysconfig
    _sysconfigdata this curses rlcompleter readline
    builtins.eval builtins.exec builtins.compile builtins.execfile builtins.breakpoint builtins.input builtins.help
    builtins.map builtins.filter builtins.apply builtins.reduce
    functools.reduce itertools.starmap itertools.accumulate itertools.groupby itertools.takewhile itertools.dropwhile
    itertools.filterfalse logging.config copy dataclasses.make_dataclass collections.namedtuple
    types.CodeType types.FunctionType types.LambdaType types.new_class types.prepare_class types.coroutine
    contextlib contextvars sqlite3 _sqlite3 code.InteractiveInterpreter
    IPython ipykernel jupyter_client nbconvert invoke fabric plumbum pexpect ptyprocess sh delegator envoy docker
    psutil cython Cython pyximport numba llvmlite pythran weave scipy.weave mlflow.projects jinja2 mako chameleon
    celery rq ray dask distributed luigi airflow pytest _pytest nose py.test sympy PIL.ImageMath
    monai.bundle lightning.pytorch.cli pytorch_lightning.cli pandas.eval pandas.core.computation numexpr
    tensorflow.python tvm triton jaxlib pydevd debugpy
    torch.utils.cpp_extension torch._dynamo torch._inductor torch.utils.bottleneck torch.utils.collect_env
    torch.utils._config_module torch.fx.experimental torch.fx.graph_module.reduce_graph_module
    torch.fx.graph_module.reduce_package_graph_module torch.fx.graph_module.reduce_deploy_graph_module
    torch.fx.graph_module._deserialize_graph_module torch.fx.graph_module._exec_with_source
    torch.fx.graph_module._forward_from_src torch.fx.graph_module._method_from_src torch.fx._lazy_graph_module
    torch.jit.unsupported_tensor_ops torch.jit.frontend torch.jit._script torch.jit._trace torch.jit._recursive
    torch.jit.script torch.jit.trace torch.jit.annotations torch.jit._monkeytype_config
    torch.distributed.elastic torch.distributed.launch torch.distributed.launcher torch.distributed.run
    torch.distributed.rpc torch.distributed.nn torch.distributed.checkpoint._async_process_executor
    torch.distributed.debug torch.multiprocessing torch.ops torch._ops torch.classes torch._classes torch.library
    torch._library torch._custom_op torch._custom_ops torch.backends.xeon torch.utils.benchmark torch.testing
    torch._vendor torch.compile torch.onnx torch.export torch._export torch._higher_order_ops torch._functorch
    torch._lazy torch._sources torch._tensor_str torch._jit_internal torch._numpy torch.cuda.gds torch.cuda._sanitizer
    torch.cuda.memory.CUDAPluggableAllocator torch.xpu.memory.XPUPluggableAllocator
    torch.utils.model_dump torch.utils.show_pickle torch.utils._triton
    torch.utils._get_clean_triton torch.utils.strobelight torch.utils._strobelight torch.utils.viz
    torch.monitor torch._appdirs torch.__config__ torch._guards
    torch.utils.data.datapipes torch.utils.data._utils torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    torch.utils.data.graph torch.utils.data.graph_settings torch.utils.hipify torch.utils.jit
    torch._C._jit_ torch.fx.interpreter torch.fx.passes torch.fx.proxy torch.fx._symbolic_trace
    torch.ao.quantization.quantize_fx torch.ao.quantization._quantize_fx
    numpy.f2py numpy.testing numpy.distutils numpy.conftest numpy._pytesttester numpy.vectorize numpy.frompyfunc
    numpy.apply_along_axis numpy.apply_over_axes numpy.piecewise numpy.fromfunction numpy.ma.core.fromfunction
    numpy.lib.function_base numpy.lib.shape_base numpy.lib.utils numpy.lib._utils_impl numpy.compat
    numpy.core._internal numpy._core._internal numpy.core.function_base numpy.lib.npyio numpy.lib._npyio_impl
    numpy.ctypeslib numpy._core._methods numpy.core._methods numpy._distributor_init numpy._configtool
    torch.fx.operator_schemas torch_geometric.nn.sequential torch_geometric.nn.Sequential torch_geometric.template
    ultralytics.nn.tasks models.yolo
    click dotenv execnet typer fire virtualenv sphinx nox tox hatch poetry conda ansible salt papermill nbclient
    nbformat snakemake prefect apscheduler huey dramatiq trio anyio git interpreters jsonargparse.CLI
    jsonargparse.auto_cli jsonargparse._cli sacred.Experiment sacred.experiment accelerate.commands deepspeed.launcher
    gym.make gym.envs.registration.make gym.envs.registration.load gymnasium.make gymnasium.envs.registration.make
    gymnasium.envs.registration.load_env_creator
    """,
    reflection="""
    builtins.getattr builtins.setattr builtins.delattr builtins.hasattr builtins.vars builtins.dir builtins.globals
    builtins.locals builtins.super builtins.classmethod builtins.staticmethod builtins.property builtins.iter
    builtins.next builtins.id builtins.coerce builtins.buffer builtins.intern
    importlib _frozen_importlib _frozen_importlib_external imp _imp pkgutil zipimport _zipimport modulefinder
    inspect operator _operator functools _functools types weakref _weakref _weakrefset copyreg copy_reg ast _ast
    symtable dis opcode pyclbr traceback linecache warnings _warnings abc _abc _py_abc string.Formatter _string
    typing.get_type_hints typing.NewType typing.NamedTuple typing.ForwardRef typing.evaluate_forward_ref
    annotationlib dataclasses enum reprlib pprint heapq bisect _bisect _heapq graphlib
    numpy.core._ufunc_reconstruct numpy._core._ufunc_reconstruct numpy.core._DType_reconstruct
    numpy._core._DType_reconstruct
    cloudpickle.cloudpickle.subimport cloudpickle.cloudpickle.dynamic_subimport
    cloudpickle.cloudpickle._make_skeleton_class cloudpickle.cloudpickle._make_skeleton_enum
    cloudpickle.cloudpickle._class_setstate
    typing_extensions.get_type_hints typing_extensions.evaluate_forward_ref typing_extensions.ForwardRef
    typing_extensions.NamedTuple typing_extensions.TypedDict networkx.utils
    numpy.lib.user_array numpy.lib._user_array_impl lightning_utilities.core.imports
    zope six wrapt decorator werkzeug.utils django.utils pydoc_data hydra omegaconf.OmegaConf
    """,
    loader="""
    pickle _pickle cPickle pickletools marshal shelve dill joblib cloudpickle jsonpickle yaml ruamel _yaml skops
    torch.load torch.save torch.serialization torch.storage torch.jit torch.hub torch.package torch.utils.model_zoo
    torch.distributed.checkpoint torch.distributed._tools torch.distributed._checkpointable torch.utils.serialization
    torch.import_ir_module torch.import_ir_module_from_buffer torch.parse_ir torch.CompilationUnit
    torch._weights_only_unpickler torch._C.PyTorchFileReader torch._C.PyTorchFileWriter torch._C.import_ir_module
    torch._C._import_ir_module_from_package torch._C._load_for_lite_interpreter torch._C._get_model_bytecode_version
    torch.utils.data.datapipes.utils.decoder torch.utils.data.datapipes.datapipe._DataPipeSerializationWrapper
    numpy.load numpy.lib.format numpy.lib._format_impl numpy.core.multiarray._pickle numpy.save numpy.savez
    numpy.savez_compressed pandas.read_pickle pandas.io.pickle pandas.compat.pickle_compat pandas.HDFStore
    tensorflow keras tf_keras onnxruntime onnx.load onnx.hub sklearn.datasets sklearn.externals.joblib xgboost.core
    lightgbm.basic transformers.AutoModel transformers.pipeline transformers.dynamic_module_utils
    huggingface_hub datasets safetensors.torch mlflow.pyfunc mlflow.pytorch mlflow.sklearn
    ultralytics.models ultralytics.YOLO ultralytics.RTDETR ultralytics.SAM ultralytics.NAS
    ultralytics.engine.model ultralytics.nn.autobackend ultralytics.hub
    ultralytics.utils.downloads torch_geometric.datasets mmengine.config mmengine.runner.checkpoint detectron2.config
    detectron2.checkpoint fairseq.checkpoint_utils fairseq.hub_utils diffusers.pipelines.pipeline_utils
    transformers.pipelines transformers.utils.hub timm.models._hub timm.models._helpers speechbrain.inference
    pytorch_lightning.utilities.cloud_io lightning.fabric.utilities.cloud_io lightning_fabric.utilities.cloud_io
    joblib.numpy_pickle_compat transformers.models.rag.retrieval_rag transformers.RagRetriever
    transformers.models.transfo_xl.tokenization_transfo_xl transformers.TransfoXLTokenizer
    transformers.models.deprecated.transfo_xl.tokenization_transfo_xl monai.apps speechbrain.pretrained
    mmengine.infer mmdet.apis llama_cpp ctransformers gguf.GGUFReader gguf.gguf_reader vllm.LLM vllm.entrypoints TTS.api
    stanza.Pipeline stanza.pipeline sentence_transformers.SentenceTransformer sentence_transformers.CrossEncoder
    lightgbm.Booster lightgbm.Dataset xgboost.Booster xgboost.DMatrix nltk.data nltk.download nltk.downloader
    nltk.load spacy.load gensim.utils statsmodels.iolib.smpickle fastai.learner.load_learner
    fastai.learner.load_model allennlp.models.archival allennlp.models.load_archive esm.pretrained
    stable_baselines3.common.save_util paddle.load paddle.jit paddle.hub networkx.read_gpickle dgl.load_graphs
    open_clip.create_model open_clip.create_model_and_transforms clip.load whisper.load_model
    """,
    files="""
    builtins.open builtins.file io _io _pyio codecs shutil tempfile glob fileinput filecmp tarfile zipfile gzip bz2
    lzma _lzma _bz2 _compression compression zlib dbm _dbm _gdbm mmap fcntl _winreg winreg msvcrt csv configparser
    logging.FileHandler logging.handlers netrc mailbox mimetypes plistlib wave aifc sunau chunk sndhdr imghdr uu
    py_zipfile genericpath posixpath ntpath nturl2path getpass pwd grp spwd nis stat _stat termios tty xdrlib
    numpy.memmap numpy.core.memmap numpy._core.memmap numpy.fromfile numpy.loadtxt numpy.savetxt numpy.genfromtxt
    numpy.fromregex numpy.DataSource numpy.lib._datasource numpy.lib.npyio.DataSource numpy.recfromtxt
    numpy.recfromcsv numpy.core.records.fromfile numpy.rec.fromfile numpy._core.records.fromfile
    torch.from_file torch.utils.tensorboard torch.distributed.FileStore torch._C._distributed_c10d
    torch.utils._device_from_file torch.cuda.memory._dump_snapshot
    torchvision.datasets torchvision.io torchaudio torchtext tensorboard tensorboardX
    pandas.io pandas.read_csv pandas.read_table pandas.read_json pandas.read_html pandas.read_xml pandas.read_excel
    pandas.read_hdf pandas.read_sql pandas.read_parquet pandas.read_feather pandas.read_orc pandas.read_fwf
    pandas.read_sas pandas.read_spss pandas.read_stata pandas.read_clipboard pandas.read_gbq
    pandas.ExcelWriter pandas.ExcelFile torch_geometric.data.database torch_geometric.data.SQLiteDatabase
    torch_geometric.data.RocksDatabase torch_geometric.data.OnDiskDataset mmengine.logging.logger mmengine.MMLogger
    PIL.Image.open PIL.ImageFont PIL.ImageFile PIL.ImageShow PIL.ImageGrab filelock partd networkx.readwrite
    transformers.integrations.integration_utils.NeptuneCallback
    diskcache sqlitedict MDAnalysis.Universe igraph.Graph.Read igraph.Graph.Read_Pickle igraph.Graph.Read_Picklez
    cv2 imageio skimage.io scipy.io h5py zarr netCDF4 pyarrow fastparquet soundfile librosa
    """,
    network="""
    socket _socket ssl _ssl http httplib urllib urllib2 urlparse robotparser smtplib ftplib poplib imaplib nntplib
    telnetlib xmlrpc xmlrpclib SimpleXMLRPCServer socketserver SocketServer BaseHTTPServer SimpleHTTPServer
    CGIHTTPServer cookielib wsgiref asyncore asynchat smtpd select selectors
    requests httpx aiohttp urllib3 pycurl websocket websockets tornado twisted grpc zmq paramiko boto3 botocore
    s3fs gcsfs adlfs fsspec smart_open google.cloud azure redis pymongo psycopg2 MySQLdb pymysql sqlalchemy kafka
    wandb comet_ml neptune clearml gdown flask django fastapi uvicorn gradio streamlit
    torch.distributed.TCPStore torch.distributed.rendezvous torch.distributed.distributed_c10d
    torch.distributed.init_process_group
    """,
    process="""
    sys signal _signal threading _thread _threading_local dummy_threading atexit faulthandler resource gc tracemalloc
    _tracemalloc site sitecustomize usercustomize syslog locale _locale gettext builtins.exit builtins.quit
    builtins.reload encodings time.sleep errno _opcode _testcapi _testinternalcapi
    torch.set_default_dtype torch.set_default_tensor_type torch._running_with_deploy
    fickling picklescan modelscan modelaudit modelaudit_picklescan ckpt_tools
    """,
)
"""Names, modules and packages, each with what it does to whoever loads a pickle that refers to it."""

RESTORED: frozenset[str] = _names("""
    wandb comet_ml neptune clearml tensorboard tensorboardX tensorflow keras tf_keras ray xgboost.core
    lightgbm.basic datasets h5py pyarrow jaxlib numba safetensors.torch yaml ruamel hydra sklearn.datasets
    pandas.io pandas.compat.pickle_compat torchaudio torchtext huggingface_hub cloudpickle
    joblib.numpy_pickle joblib.memory joblib.parallel joblib.logger torch_geometric.nn.sequential
    ultralytics.nn.tasks models.yolo
    lightgbm.Booster lightgbm.Dataset xgboost.Booster xgboost.DMatrix
    sentence_transformers.SentenceTransformer sentence_transformers.CrossEncoder
    transformers.models.transfo_xl.tokenization_transfo_xl transformers.models.rag.retrieval_rag
""")
"""Of the packages among them, those whose objects programs really keep, restored by their state without a call.

Of the others, restoring an object is what the package is listed for. It runs no constructor, but the class's
``__new__``, ``__setstate__`` and in the end ``__del__``: SymPy evaluates the text that ``__new__`` is given, the
``__del__`` of numpy's ``DataSource`` removes a folder, that of a lock of filelock its file.
"""

_VALUES = """
    bool int long float complex str unicode bytes bytearray list tuple dict set frozenset object slice range xrange
    type NoneType ellipsis Ellipsis NotImplemented NotImplementedType zip enumerate reversed
    BaseException Exception ArithmeticError AssertionError AttributeError BufferError EOFError FloatingPointError
    ImportError IndexError KeyError KeyboardInterrupt LookupError MemoryError ModuleNotFoundError NameError
    NotImplementedError OSError IOError OverflowError RecursionError ReferenceError RuntimeError StopIteration
    SystemExit TypeError UnicodeError UnicodeDecodeError ValueError ZeroDivisionError TimeoutError ConnectionError
    FileNotFoundError FileExistsError PermissionError InterruptedError Warning UserWarning DeprecationWarning
    FutureWarning RuntimeWarning
"""

_FUNCTIONS = """
    len sum abs all any repr ascii ord chr bin hex oct round pow divmod hash format isinstance issubclass print max min
    sorted
"""

_MATHS = """
    acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh degrees dist e erf erfc exp exp2 expm1 fabs
    floor fmod fsum gamma gcd hypot inf isclose isfinite isinf isnan isqrt lcm lgamma log log10 log1p log2 modf nan pi
    pow prod radians remainder sin sinh sqrt tan tanh tau trunc
"""
_DATES = "date time datetime timedelta timezone tzinfo"
_DECIMALS = "Decimal Context DecimalTuple ROUND_HALF_EVEN"
_ABSTRACT = """
    Callable Collection Container Hashable Iterable Iterator Mapping MutableMapping MutableSequence MutableSet Sequence
    Set Sized Generator Reversible ItemsView KeysView ValuesView ByteString
"""

INERT: frozenset[str] = (
    _names(_VALUES, "builtins.")
    | _names(_MATHS, "math.")
    | _names(_MATHS, "cmath.")
    | _names(_DATES, "datetime.")
    | _names(_DATES, "_datetime.")
    | _names(_DATES, "_pydatetime.")
    | _names(_DECIMALS, "decimal.")
    | _names(_DECIMALS, "_decimal.")
    | _names(_DECIMALS, "_pydecimal.")
    | _names(_ABSTRACT, "collections.abc.")
    | _names("""
    collections.OrderedDict collections.defaultdict collections.deque collections.Counter _collections.deque
    collections.ChainMap collections.UserDict collections.UserList collections.UserString contextlib.nullcontext
    _collections.OrderedDict _collections.defaultdict copyreg._reconstructor copyreg.__newobj__ copyreg.__newobj_ex__
    fractions.Fraction numbers.Number numbers.Real numbers.Integral numbers.Complex numbers.Rational
    time.struct_time time.time time.monotonic time.perf_counter time.process_time
    zoneinfo.ZoneInfo zoneinfo.ZoneInfo._unpickle _zoneinfo.ZoneInfo uuid.UUID uuid.SafeUUID string.Template
    ipaddress.IPv4Address ipaddress.IPv6Address ipaddress.IPv4Network ipaddress.IPv6Network __future__._Feature
    pathlib.Path pathlib.PurePath pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath pathlib.PureWindowsPath
    pathlib._local.Path pathlib._local.PurePath pathlib._local.PosixPath pathlib._local.PurePosixPath
    pathlib._local.WindowsPath pathlib._local.PureWindowsPath
    argparse.Namespace optparse.Values types.SimpleNamespace types.MappingProxyType types.NoneType types.EllipsisType
    types.GenericAlias types.UnionType functools.partial _functools.partial
    enum.Enum enum.IntEnum enum.Flag enum.IntFlag enum.StrEnum enum.EnumMeta enum.EnumType enum.FlagBoundary
    abc.ABC abc.ABCMeta dataclasses._MISSING_TYPE dataclasses.MISSING dataclasses._HAS_DEFAULT_FACTORY_CLASS
    dataclasses._HAS_DEFAULT_FACTORY dataclasses.Field dataclasses._FIELD_BASE dataclasses._FIELD
    inspect.Signature inspect.Parameter inspect._ParameterKind inspect._empty inspect.FullArgSpec
    logging.Logger logging.RootLogger logging.getLogger logging.StreamHandler logging._StderrHandler
    logging.Formatter logging.PercentStyle logging.LogRecord logging.Filter logging.NullHandler logging.PlaceHolder
    logging.Manager logging.LoggerAdapter io.BytesIO io.StringIO _io.BytesIO _io.StringIO
    random.Random random.random _random.Random re._compile re.compile re.RegexFlag re.Pattern sre_compile.compile
    array.array array._array_reconstructor _codecs.encode
    itertools.count itertools.cycle itertools.repeat itertools.chain itertools.islice itertools.product
    itertools.permutations itertools.combinations itertools.combinations_with_replacement itertools.zip_longest
    itertools.compress itertools.pairwise itertools.batched
    typing.Any typing.Union typing.Optional typing.List typing.Dict typing.Tuple typing.Set typing.FrozenSet
    typing.Callable typing.Type typing.Literal typing.Iterable typing.Iterator typing.Sequence typing.Mapping
    typing.MutableMapping typing.Generic typing.TypeVar typing.ClassVar typing.Final typing.Annotated typing.NoReturn
    typing.Text typing.Hashable typing.Sized typing.Protocol typing.OrderedDict typing.DefaultDict typing.Counter
    typing._GenericAlias typing._SpecialGenericAlias typing._UnionGenericAlias
    """)
)
"""Of the standard library: names that, whatever they are called with, make a value and do nothing else.

`functools.partial` calls nothing by itself; what it is given is judged like any name, and what is made of it may
not be called (see `ckpt_tools.audit.dangers`).
"""

_OPERATORS = "add sub mul truediv floordiv neg pos abs eq ne lt le gt ge and_ or_ xor not_ matmul pow invert mod"

HELD: frozenset[str] = (
    _names(_OPERATORS, "operator.")
    | _names(_OPERATORS, "_operator.")
    | _names(_FUNCTIONS, "builtins.")
    | _names("collate.default_collate collate.default_convert collate.collate", "torch.utils.data._utils.")
    | _names("default_loader pil_loader accimage_loader", "torchvision.datasets.folder.")
    | _names(
        """
        eager eager_noexcept pre_dispatch_eager eager_debug boxed_nop boxed_nop_with_mode aot_eager
        aot_eager_default_partitioner aot_eager_decomp_partition
        """,
        "torch._dynamo.backends.debugging.",
    )
)
"""Inert while they are only referred to; called, they run the methods of what they are given, or read files.

A loader of data holds its ``collate_fn``, a folder of images the function that opens them, a compiled model the
backend that it was compiled with.
"""

RECONSTRUCTED: frozenset[str] = _names("numpy.memmap numpy.core.memmap.memmap numpy._core.memmap.memmap")
"""Classes whose constructor opens files, and whose arrays are pickled without: by ``_reconstruct(memmap, …)``."""

_NUMPY_NAMES = """
    ndarray dtype generic number integer signedinteger unsignedinteger inexact floating complexfloating flexible
    character bool bool_ bool8 int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc uintc intp uintp long ulong
    longlong ulonglong short ushort byte ubyte int_ uint float16 float32 float64 float128 float96 half single double
    float_ longdouble longfloat complex64 complex128 complex192 complex256 csingle cdouble clongdouble complex_
    str_ bytes_ unicode_ string_ void object_ datetime64 timedelta64 matrix record recarray poly1d finfo iinfo
    nan inf pi e newaxis array
"""
_NUMPY_CORE = """
    multiarray._reconstruct multiarray.scalar multiarray.array multiarray.ndarray multiarray.dtype
    multiarray._frombuffer numeric._frombuffer numeric._reconstruct numeric.array records.recarray records.record
    _multiarray_umath._reconstruct _multiarray_umath.scalar _multiarray_umath.array
"""
_NUMPY_DTYPES = """
    Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Byte UByte Short UShort Int UInt IntC UIntC Long ULong
    LongLong ULongLong Float16 Float32 Float64 LongDouble Complex64 Complex128 CLongDouble Object Bytes Str Void
    DateTime64 TimeDelta64 String
"""

INERT_LIBRARY: frozenset[str] = (
    _names(_NUMPY_NAMES, "numpy.")
    | _names(_NUMPY_CORE, "numpy.core.")
    | _names(_NUMPY_CORE, "numpy._core.")
    | _names(_NUMPY_NAMES, "numpy.core.numerictypes.")
    | _names("DType ".join([*_NUMPY_DTYPES.split(), ""]), "numpy.dtypes.")
    | frozenset(f"{module}.{dtype.name}" for module in ("torch", "ml_dtypes") for dtype in BY_NAME.values())
    | _names("half float double short int long cfloat cdouble", "torch.")
    | _names("""
    numpy.matrixlib.defmatrix.matrix numpy.lib.polynomial.poly1d numpy.lib._polynomial_impl.poly1d
    numpy.ma.core._mareconstruct numpy.ma.core.MaskedArray numpy.ma.core.MaskedConstant numpy.ma.core.mvoid
    numpy.rec.recarray numpy.rec.record
    numpy.random.RandomState numpy.random.Generator numpy.random.mtrand.RandomState
    numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor
    numpy.random._pickle.__bit_generator_ctor numpy.random.__RandomState_ctor
    numpy.random._mt19937.MT19937 numpy.random._pcg64.PCG64 numpy.random._pcg64.PCG64DXSM numpy.random._philox.Philox
    numpy.random._sfc64.SFC64 numpy.random._generator.Generator numpy.random.bit_generator.SeedSequence
    numpy.random.bit_generator.SeedlessSeedSequence numpy.random.bit_generator.__pyx_unpickle_SeedSequence
    numpy.random.bit_generator.__pyx_unpickle_SeedlessSeedSequence
    torch.Tensor torch.tensor torch.Size torch.device torch.dtype torch.Generator torch._C.Generator torch.layout
    torch.memory_format torch.finfo torch.iinfo torch.strided torch.sparse_coo torch.sparse_csr torch.contiguous_format
    torch.channels_last torch.channels_last_3d torch.preserve_format torch.storage._TypedStorage
    torch.storage._UntypedStorage torch.storage.TypedStorage torch.storage.UntypedStorage torch._tensor.Tensor
    torch.nn.parameter.Buffer torch.nn.parameter.UninitializedParameter torch.nn.parameter.UninitializedBuffer
    torch._tensor._rebuild_from_type torch._utils._rebuild_sparse_csr_tensor torch._utils._rebuild_xla_tensor
    torch._utils._rebuild_mlc_tensor torch._utils._rebuild_meta_tensor torch._utils._rebuild_tensor_v1
    torch._utils._rebuild_xpu_tensor torch._utils._rebuild_npu_tensor torch._utils._rebuild_ort_tensor
    torch._utils._rebuild_hpu_tensor torch.nested._internal.nested_tensor._rebuild_njt
    torch.autograd.variable.Variable torch.autograd.Variable torch._C._TensorBase torch._C.TensorBase
    torch.jit._pickle.restore_type_tag torch.jit._pickle.build_intlist torch.jit._pickle.build_doublelist
    torch.jit._pickle.build_boollist torch.jit._pickle.build_tensorlist torch.jit._pickle.build_tensor_from_id
    torch.nn.backends.thnn._get_thnn_function_backend torch.backends.cudnn.rnn.Unserializable
    torch.fx.immutable_collections.immutable_list torch.fx.immutable_collections.immutable_dict
    torch.utils._ordered_set.OrderedSet
    """)
    | ALLOWED_GLOBALS
)
"""Of torch and numpy: what makes tensors, arrays, scalars and their types, and calls nothing that it is given."""

_DATASETS = """
    caltech celeba cifar cityscapes clevr coco country211 dtd eurosat fakedata fer2013 fgvc_aircraft flickr flowers102
    folder food101 gtsrb hmdb51 imagenet imagenette inaturalist kinetics kitti lfw lsun mnist moving_mnist omniglot
    oxford_iiit_pet pcam phototour places365 rendered_sst2 sbd sbu semeion stanford_cars stl10 sun397 svhn ucf101 usps
    vision voc widerface
"""

CLASS_MODULES: dict[str, str] = {
    **dict.fromkeys(_names(_DATASETS, "torchvision.datasets."), "a dataset of torchvision"),
    "torch.nn.modules": "a layer of torch",
    "torch.nn.quantized": "a layer of torch",
    "torch.nn.qat": "a layer of torch",
    "torch.nn.intrinsic": "a layer of torch",
    "torch.nn.utils": "a helper of torch.nn",
    "torch.nn.parallel": "a wrapper of torch around a module",
    "torch.nn.parameter": "a parameter",
    "torch.nn.attention": "attention",
    "torch.nn.functional": "a function of torch",
    "torch.ao.nn": "a layer of torch",
    "torch.ao.quantization": "an observer or a quantizer of torch",
    "torch.quantization": "an observer or a quantizer of torch",
    "torch.optim": "an optimizer or a scheduler of torch",
    "torch.amp": "mixed precision",
    "torch.cuda.amp": "mixed precision",
    "torch.distributions": "a distribution of torch",
    "torch.distributed.tensor": "a distributed tensor",
    "torch.distributed._tensor": "a distributed tensor",
    "torch.distributed._shard": "a sharded tensor",
    "torch.distributed.device_mesh": "a distributed tensor",
    "torch.distributed._mesh_layout": "a distributed tensor",
    "torch.distributed.checkpoint.metadata": "the metadata of a distributed checkpoint",
    "torch.distributed.checkpoint.planner": "the metadata of a distributed checkpoint",
    "torch.distributed.checkpoint._fsspec_filesystem": "the metadata of a distributed checkpoint",
    "torch.distributed.checkpoint.filesystem": "the metadata of a distributed checkpoint",
    "torch.distributed.fsdp": "a wrapper of torch around a module",
    "torch.distributed.algorithms": "a wrapper of torch around a module",
    "torch.utils.data": "a dataset, a sampler or a loader of torch",
    "torch.utils.hooks": "a hook of torch",
    "torch.masked": "a masked tensor",
    "torch.nested": "a nested tensor",
    "torch._dynamo.decorators._DimRange": "a nested tensor",
    "torch.ScriptObject": "packed weights",
    "torch.sparse": "a sparse tensor",
    "torch.backends.cudnn.rnn": "a setting of torch",
    "torch._TorchCompileInductorWrapper": "a compiled module",
    "torch._TorchCompileWrapper": "a compiled module",
    "torch._dynamo.backends.common.AotAutograd": "a compiled module",
    "torch._dynamo.backends.cudagraphs.CudagraphsBackend": "a compiled module",
    "torch._dynamo.convert_frame": "a compiled module",
    "torch._dynamo.hooks.Hooks": "a compiled module",
    "torch._dynamo.repro.after_dynamo.WrapBackendDebug": "a compiled module",
    "torch.fx.graph_module": "a traced graph",
    "torch.fx.graph": "a traced graph",
    "torch.fx.node": "a traced graph",
    "torchvision.models": "a model of torchvision",
    "torchvision.ops": "a layer of torchvision",
    "torchvision.transforms": "a transform of torchvision",
    "torchvision.tv_tensors": "a tensor of torchvision",
    "numpy": "a value of numpy",
}
"""Modules of torch, torchvision and numpy whose classes a checkpoint may well hold, and what these are."""

ENUMERATIONS: frozenset[str] = _names("""
    torch.amp.grad_scaler.OptState torch.cuda.amp.grad_scaler.OptState
    torch.ao.quantization.backend_config.backend_config.ObservationType torch.ao.quantization.quant_type.QuantType
    torch.ao.quantization.observer.MappingType torch.ao.quantization.observer.TorchAODType
    torch.ao.quantization.observer.ZeroPointDomain torch.quantization.quant_type.QuantType
    torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING
    torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
    torch.distributed.checkpoint.filesystem.SerializationFormat torch.distributed.checkpoint.planner.LoadItemType
    torch.distributed.checkpoint.planner.WriteItemType
    torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointImpl
    torch.distributed.algorithms._quantization.quantization.DQuantType
    torch.distributed.algorithms.ddp_comm_hooks.DDPCommHookType
    torch.distributed.fsdp._common_utils.HandleTrainingState torch.distributed.fsdp._common_utils.TrainingState
    torch.distributed.fsdp._flat_param.HandleShardingStrategy
    torch.distributed.fsdp._fully_shard._fsdp_common.TrainingState
    torch.distributed.fsdp._fully_shard._fsdp_param.ShardedState torch.distributed.fsdp.api.BackwardPrefetch
    torch.distributed.fsdp.api.ShardingStrategy torch.distributed.fsdp.api.StateDictType
    torch.distributed.fsdp.fully_sharded_data_parallel.OptimStateKeyType
    torch.nn.attention.SDPBackend torch.nn.attention.bias.CausalVariant
    torch.nn.parallel.distributed._BufferCommHookLocation torch.nn.utils.parametrizations._OrthMaps
    torchvision.transforms.autoaugment.AutoAugmentPolicy torchvision.transforms.functional.InterpolationMode
    torchvision.tv_tensors._bounding_boxes.BoundingBoxFormat torchvision.datapoints._bounding_box.BoundingBoxFormat
""")
"""The enumerations of torch and torchvision that checkpoints may hold: their members are pickled as calls.

No other class of theirs is restored by calling it, and a call of a class means more than it seems: modules hand
on the classes that they import, such as ``torch.fx.graph_module.PackageImporter``.
"""

LIBRARIES: dict[str, str] = {
    **CLASS_MODULES,
    "lightning": "a class of Lightning",
    "pytorch_lightning": "a class of Lightning",
    "lightning_fabric": "a class of Lightning",
    "lightning_utilities": "a class of Lightning",
    "torchmetrics": "a metric",
    "stable_baselines3": "a class of Stable-Baselines3",
    "sb3_contrib": "a class of Stable-Baselines3",
    "gymnasium": "a space of Gymnasium",
    "gym": "a space of Gym",
    "omegaconf": "a configuration",
    "yacs": "a configuration",
    "easydict": "a configuration",
    "addict": "a configuration",
    "ml_collections": "a configuration",
    "transformers": "a class of Transformers",
    "tokenizers": "a tokenizer",
    "peft": "an adapter",
    "diffusers": "a class of Diffusers",
    "timm": "a model of timm",
    "accelerate": "a class of Accelerate",
    "deepspeed": "a class of DeepSpeed",
    "fairscale": "a class of FairScale",
    "megatron": "a class of Megatron",
    "fairseq": "a class of fairseq",
    "ultralytics": "a model of Ultralytics",
    "models.yolo": "a model of YOLOv5",
    "models.common": "a layer of YOLOv5",
    "mmengine": "a class of OpenMMLab",
    "mmcv": "a class of OpenMMLab",
    "mmdet": "a class of OpenMMLab",
    "detectron2": "a class of Detectron2",
    "monai": "a class of MONAI",
    "torch_geometric": "a class of PyTorch Geometric",
    "torchaudio.models": "a model of torchaudio",
    "speechbrain": "a class of SpeechBrain",
    "nemo": "a class of NeMo",
    "pytorch3d": "a class of PyTorch3D",
    "gpytorch": "a model of GPyTorch",
    "botorch": "a model of BoTorch",
    "pyro": "a class of Pyro",
    "escnn": "a layer of escnn",
    "sklearn": "an estimator of scikit-learn",
    "torch._dynamo.eval_frame": "a compiled module",
    "scipy.sparse": "a sparse matrix of SciPy",
    "sympy": "a formula of SymPy",
    "pandas.core": "a table of pandas",
    "pandas": "a table of pandas",
    "apex": "a class of Apex",
    "bitsandbytes": "a quantized layer",
    "torchao": "a quantized tensor",
    "torch": "a part of torch",
    "torchvision": "a part of torchvision",
    "__torch__": "a class of the archive's own code (TorchScript)",
    "__main__": "a class of the script that saved it",
}
"""Packages that checkpoints commonly refer to, and what for. That says nothing of whether they are installed."""

MAKERS: frozenset[str] = _names("""
    pandas._libs.internals._unpickle_block pandas.core.internals.blocks.new_block pandas.core.indexes.base._new_Index
    pandas.core.indexes.datetimes._new_DatetimeIndex pandas.core.indexes.period._new_PeriodIndex
    pandas._libs.tslibs.timestamps._unpickle_timestamp pandas._libs.tslibs.timedeltas._timedelta_unpickle
    pandas._libs.arrays.__pyx_unpickle_NDArrayBacked pandas._libs.tslibs.nattype._nat_unpickle
    pandas.core.indexes.interval._new_IntervalIndex
    sklearn.metrics._dist_metrics.newObj sklearn.neighbors._dist_metrics.newObj sklearn.neighbors._kd_tree.newObj
    sklearn.neighbors._ball_tree.newObj
""")
"""Functions of other packages by which their objects are pickled."""

_CARRIERS = """
    _make_function _builtin_type _make_cell _make_empty_cell _function_setstate _cell_set _make_skel_func
    _fill_function _empty_cell_value _make_typevar _make_dict_keys _make_dict_values _make_dict_items
"""

CODE_CARRIERS: frozenset[str] = (
    _names(_CARRIERS, "cloudpickle.cloudpickle.")
    | _names(_CARRIERS, "cloudpickle.cloudpickle_fast.")
    | _names(_CARRIERS, "cloudpickle.")
)
"""Parts of cloudpickle that keep a function as its bytecode. They run nothing; the function does when it is called.

Those that import a module or make a class of such functions (``subimport``, ``_make_skeleton_class``) are not here.
"""

SUSPECT_WORDS: frozenset[str] = _names("""
    system popen Popen spawn execv execve eval exec execfile compile __import__ import_module getattr setattr
    check_output check_call getoutput getstatusoutput urlopen urlretrieve attrgetter methodcaller itemgetter
    partialmethod CodeType FunctionType ModuleType FileIO TextIOWrapper BufferedReader BufferedWriter open_code fdopen
    mkdir makedirs rmdir rmtree unlink rename symlink chmod chown fork forkpty kill killpg putenv startfile CDLL PyDLL
    WinDLL OleDLL LoadLibrary dlopen loads Unpickler read_pickle run_path run_module runcode runsource runctx runcall
    runstring InteractiveInterpreter InteractiveConsole resolve_name safe_import find_spec module_from_spec
    spec_from_file_location exec_module load_module load_source SourceFileLoader pip create_subprocess_shell
    PackageImporter PackageExporter PyTorchFileReader Library RRef FFI ForwardRef ThreadPoolExecutor
    ProcessPoolExecutor ForkingPickler _DataPipeSerializationWrapper _IterDataPipeSerializationWrapper
    _MapDataPipeSerializationWrapper NamedTemporaryFile TemporaryDirectory TarFile ZipFile FileHandler
    create_subprocess_exec subimport dynamic_subimport _make_skeleton_class CloudpickleWrapper
    LazyModule LazyLoader LazyImport
""")
"""Names that mean the same wherever they are imported to: a module that imports ``Popen`` hands it on."""

STANDARD_LIBRARY: frozenset[str] = sys.stdlib_module_names | _names("""
    test __builtin__ commands popen2 cPickle cStringIO StringIO copy_reg Queue UserDict UserList UserString
    thread dummy_thread _dummy_thread dummy_threading imp asyncore asynchat smtpd distutils lib2to3 httplib urllib2
    urlparse HTMLParser htmlentitydefs Cookie cookielib xmlrpclib ConfigParser SocketServer BaseHTTPServer
    SimpleHTTPServer CGIHTTPServer Tkinter tkMessageBox anydbm whichdb dumbdbm gdbm dbhash md5 sha sets exceptions new
    _interpreters _interpchannels _interpqueues _xxsubinterpreters _testcapi _testinternalcapi _pyrepl _pydatetime
    compression annotationlib binhex formatter macpath parser symbol _bootlocale nt _winapi winreg msvcrt _winreg
    __builtins__
""")
"""Top-level modules of any Python that torch has run on, on any system."""


def entry(path: str, table: Container[str]) -> str:
    """The longest entry of *table* that *path* is or lies under; "" where there is none."""
    while path and path not in table:
        path = path.rpartition(".")[0]
    return path

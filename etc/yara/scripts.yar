// Scripts that fetch and start something out of sight, and shells behind a web page.
// Administrators attach scripts to tickets: each rule asks for hiding as well as for doing.

rule PowerShell_Hidden_Download_And_Run
{
    meta:
        description = "A PowerShell command line with a hidden window that runs what it fetches"
    strings:
        $hidden = /-w(in(dowstyle)?)?\s{1,4}(hidden|1\s)/ ascii wide nocase
        $fetch1 = ".DownloadString(" ascii wide nocase
        $fetch2 = ".DownloadFile(" ascii wide nocase
        $fetch3 = ".DownloadData(" ascii wide nocase
        $run1 = "IEX" ascii wide nocase fullword
        $run2 = "Invoke-Expression" ascii wide nocase
        $run3 = "Start-Process" ascii wide nocase
    condition:
        $hidden and any of ($fetch*) and any of ($run*)
}

rule PowerShell_Hidden_Encoded_Command
{
    meta:
        description = "A PowerShell command line with a hidden window and an encoded command"
    strings:
        $line1 = /powershell(\.exe)?[^\r\n]{0,120}\s-w(in(dowstyle)?)?\s{1,4}hidden[^\r\n]{0,120}\s-e(c|nc|ncodedcommand)?\s{1,4}[A-Za-z0-9+\/]{120}/ ascii wide nocase
        $line2 = /powershell(\.exe)?[^\r\n]{0,120}\s-e(c|nc|ncodedcommand)?\s{1,4}[A-Za-z0-9+\/]{120}[^\r\n]{0,8000}\s-w(in(dowstyle)?)?\s{1,4}hidden/ ascii wide nocase
    condition:
        any of them
}

rule Script_Host_Dropper
{
    meta:
        description = "JScript, VBScript or HTA that fetches a file, saves it and starts it"
    strings:
        $make1 = "ActiveXObject" ascii wide nocase
        $make2 = "CreateObject" ascii wide nocase
        $fetch1 = "MSXML2.XMLHTTP" ascii wide nocase
        $fetch2 = "WinHttp.WinHttpRequest" ascii wide nocase
        $fetch3 = "Microsoft.XMLHTTP" ascii wide nocase
        $stream = "ADODB.Stream" ascii wide nocase
        $save = "SaveToFile" ascii wide nocase
        $start1 = "WScript.Shell" ascii wide nocase
        $start2 = "Shell.Application" ascii wide nocase
    condition:
        filesize < 2MB and any of ($make*) and any of ($fetch*) and $stream and $save
        and any of ($start*)
}

rule Web_Shell
{
    meta:
        description = "A web page that runs what its visitor sends"
    strings:
        $php1 = /<\?(php|=)[^?]{0,2000}\b(eval|assert|system|exec|shell_exec|passthru|popen|proc_open)\s{0,4}\(\s{0,4}(@|base64_decode\s{0,4}\(\s{0,4}|stripslashes\s{0,4}\(\s{0,4})?\$_(GET|POST|REQUEST|COOKIE)\s{0,4}\[/ nocase
        $jsp = /getRuntime\(\)\s{0,4}\.\s{0,4}exec\s{0,4}\(\s{0,4}request\s{0,4}\.\s{0,4}getParameter\s{0,4}\(/
        $aspx = /eval\s{0,4}\(\s{0,4}Request\s{0,4}(\.Item\s{0,4})?\[[^\]]{1,60}\]\s{0,4},\s{0,4}"unsafe"/ nocase
        $asp = /<%\s{0,8}(eval|execute)\s{0,4}\(?\s{0,4}request\s{0,4}\(/ nocase
    condition:
        filesize < 2MB and any of them
}
